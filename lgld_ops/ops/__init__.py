"""The torch ops: schemas, fakes, autograd, autocast and the plain formulation that runs where no kernel does."""
