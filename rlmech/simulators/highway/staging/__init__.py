"""A road held still: vehicles taken hold of, edited and observed. What `rlmech.scenes` does in highway-env."""
