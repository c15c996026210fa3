"""The page of `decodetax predict --html`: the formulas of this package, translated to JavaScript."""
