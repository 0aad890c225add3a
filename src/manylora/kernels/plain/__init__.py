"""Operations in torch alone, as their definitions read, on any device of torch: the reference and the fall-back."""
