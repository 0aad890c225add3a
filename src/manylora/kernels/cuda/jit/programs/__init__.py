"""Programs in Triton, and its interpreter; the files beside this folder launch them."""
