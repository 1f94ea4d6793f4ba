"""The small real dataset that ships with kdcache."""
