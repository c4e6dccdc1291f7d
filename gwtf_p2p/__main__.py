"""`python -m gwtf_p2p VERB` is the same as `gwtf VERB`."""

from gwtf_p2p.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
