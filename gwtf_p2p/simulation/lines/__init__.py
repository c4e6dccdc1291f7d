"""Virtual time and what takes some: links with their bandwidth and latency, downloads, averages.

It knows bytes and seconds, not peers' states. Start with `kernel.Kernel`, the event queue, and `links.Links`, lines shared
max-min fair; `downloads` and `rounds` are transfers among several.
"""
