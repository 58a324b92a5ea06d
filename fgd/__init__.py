"""The distillation library. Importing it costs nothing: no torch, no names; import the module you need."""
