"""Sphinx's settings for the site. `make docs` gathers the pages (`site_tools/gather.py`) and builds; a warning is an error."""

project = "gwtf_p2p"
copyright = "the authors of gwtf_p2p, Apache-2.0"  # noqa: A001 (Sphinx's name)
extensions = ["myst_parser"]
myst_heading_anchors = 3
highlight_language = "text"
html_theme = "furo"
html_title = "gwtf_p2p"
html_show_sourcelink = False
html_copy_source = False
