"""Operations that write adapters, and the pipeline that they share."""
