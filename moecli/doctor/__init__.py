"""This machine as the program sees it: what is found, and what of it is wrong."""
