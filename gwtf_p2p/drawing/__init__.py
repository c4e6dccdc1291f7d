"""Pictures: SVG without a drawing library, flows stage by stage, and an iteration that can be played again in a browser.

It knows names, numbers and seconds, nothing of peers or runs. `svg` is the paper, `flows` and `replay` the pictures, `files`
writes them.
"""
