"""Operations that write or plan adapters, and their common pipeline."""
