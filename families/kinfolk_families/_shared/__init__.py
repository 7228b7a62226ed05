"""Networks and helpers that several families use."""
