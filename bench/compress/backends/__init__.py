"""Deployment backends: the model as another runtime ships and executes it. Importing this imports none of them.

Each entry of the table of compressions that lives here returns an ``nn.Module`` whose forward pass is the runtime's own
(numpy in, numpy out). Where that gives no input gradient, the module says so and offers a substitute: a copy in torch
with the same scales whose rounding has a straight-through gradient (``twin``).
"""
