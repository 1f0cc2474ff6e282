"""The tables of a ledger, and how older formats are brought to this one."""

from __future__ import annotations

FORMAT = 2  # format 1 did not store which stages are ordered
APPLICATION = 0x494C4C47

TABLES = """
CREATE TABLE owners (id INTEGER PRIMARY KEY, host TEXT, pid INTEGER, born TEXT, beat REAL);
CREATE TABLE requests (
    key TEXT PRIMARY KEY, run TEXT, teacher TEXT, body TEXT, state TEXT, response TEXT, error TEXT,
    prompt_tokens INTEGER, answer_tokens INTEGER, counted TEXT, cost REAL, seconds REAL, tries INTEGER, waits INTEGER,
    owner INTEGER, reserved_tokens INTEGER, reserved_cost REAL, sent REAL, ended REAL
);
CREATE TABLE spent (
    run TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER, cost REAL,
    reserved_requests INTEGER, reserved_tokens INTEGER, reserved_cost REAL,
    lost_requests INTEGER, lost_tokens INTEGER, lost_cost REAL
);
CREATE TABLE stages (stage TEXT PRIMARY KEY, done INTEGER, notes TEXT, ordered INTEGER DEFAULT 0);
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, stage TEXT, key TEXT, parent INTEGER, state TEXT, reason TEXT, delta TEXT
);
CREATE UNIQUE INDEX rows_key ON rows (stage, key);
CREATE INDEX rows_parent ON rows (parent, stage);
CREATE INDEX rows_state ON rows (stage, state, id);
CREATE TABLE uses (stage TEXT, row TEXT, request TEXT);
CREATE TABLE kept (name TEXT PRIMARY KEY, saved REAL, value TEXT);
CREATE INDEX uses_row ON uses (stage, row);
CREATE INDEX requests_open ON requests (owner) WHERE state = 'sent';
"""
FROM_1 = """
ALTER TABLE stages ADD COLUMN ordered INTEGER DEFAULT 0;
DROP INDEX rows_parent;
CREATE INDEX rows_parent ON rows (parent, stage);
DROP INDEX uses_stage;
CREATE INDEX uses_row ON uses (stage, row);
CREATE TABLE kept (name TEXT PRIMARY KEY, saved REAL, value TEXT);
"""
