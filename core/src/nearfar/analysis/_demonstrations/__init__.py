"""Small experiments of analyses, one module a system; `nearfar demonstrate` runs them."""
