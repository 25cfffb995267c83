"""Many answers at once from one bundle, and the server that gives them."""
