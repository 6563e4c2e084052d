"""Lists of addresses in the formats that people have them in, read to columns and written from them."""
