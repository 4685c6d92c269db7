"""The embedded database on which the ledger and the local board stand."""

from operations_center.store.queries import load_queries
from operations_center.store.sqlite import Access, Store, as_data, changed_fields

__all__ = ["Access", "Store", "as_data", "changed_fields", "load_queries"]
