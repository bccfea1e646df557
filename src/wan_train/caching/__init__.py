"""Which caches are right, which are to be made, and who may change them."""
