"""Values and factors of matrices and of products: the private engine behind the public API."""
