"""Damaged and hostile input by the thousand: whatever it is, it ends in an answer or an explained failure."""
