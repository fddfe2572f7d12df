"""The tests, a folder per room; what they share is in support/."""
