"""What training needs of Megatron-Core, whatever trainer is around it."""

from nemo_longpo.moved_modules import keep_old_names

keep_old_names()  # of modules that were in this package
