"""Work that is done again (`gwtf_p2p/protocol/audit`)."""
