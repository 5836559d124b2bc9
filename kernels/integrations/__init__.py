"""`fast` inside the libraries that run models. Each file imports its library when it is registered, not before."""
