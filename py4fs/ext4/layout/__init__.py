"""On-disk structures, each described once as a construct Struct, and the fast codecs derived from them."""
