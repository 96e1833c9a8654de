"""Former embeddings kept for contrast: a queue, a queue a class or domain, a bank with a row a sample.

All keep aligned fields in buffers, so that they move with a module and stand in its state dict, and hand out views of
them without a copy.
"""

from nearfar.memory.bank import Bank
from nearfar.memory.class_queue import ClassQueue, class_slots
from nearfar.memory.ids import others, own_rows
from nearfar.memory.queue import Queue

__all__ = ["Bank", "ClassQueue", "Queue", "class_slots", "others", "own_rows"]
