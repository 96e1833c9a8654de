"""What theory says of embeddings, tables and worlds small enough to enumerate; `nearfar analyse` runs each on a file.

One analysis a module, named as its system; `main(argv)` is its command.
"""
