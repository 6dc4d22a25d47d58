"""Module path of the founding notebook for parts of the compiler."""
