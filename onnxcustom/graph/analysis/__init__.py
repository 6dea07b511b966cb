"""What a graph says: what reads what, which values are scores, tables or matrices."""
