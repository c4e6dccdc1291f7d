"""gwtf_p2p: train a language model on strangers' computers, peer to peer.

Importing this package does no work: every part is imported where it is used.
"""

from gwtf_p2p.version import VERSION

__version__ = VERSION
__all__ = ["VERSION", "__version__"]
