"""Networks: the UNet, ordinary classifiers, and others' networks as denoisers."""
