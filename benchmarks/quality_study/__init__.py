"""What a language model loses in 4 and 8 bits, by how codes and scales are chosen."""
