"""Which caches are valid, which must be made, and who may change them."""
