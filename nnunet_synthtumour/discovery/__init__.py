"""The modules through which nnU-Net finds our trainers and planners, and the list of what there is to find.

nnU-Net walks folders of its own package and imports every module in them, also when it looks for somebody else's
trainer. So these modules must be instant and must never raise: a module-level `__getattr__` imports a class when its
name is asked for, which is how nnU-Net asks (`hasattr`, `getattr`).
"""
