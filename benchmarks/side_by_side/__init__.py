"""bnbx beside other libraries, beside dense PyTorch and beside what the machine can do at most."""
