"""Models of integers, as quantizers write them, made into models of floating-point numbers."""
