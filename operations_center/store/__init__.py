"""The embedded database on which the ledger and the local board stand."""

from operations_center.store.queries import load_queries
from operations_center.store.schema import SCHEMA
from operations_center.store.sqlite import Access, Store, as_data, as_json

__all__ = ["SCHEMA", "Access", "Store", "as_data", "as_json", "load_queries"]
