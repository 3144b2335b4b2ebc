"""LeCun, Bottou, Bengio and Haffner 1998: LeNet-5 (sections I to III)."""
