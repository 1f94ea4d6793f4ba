"""Studies: many training runs defined in one file, trained together and compared with the paper."""
