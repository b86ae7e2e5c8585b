-- begin_trx: marks a transaction that has just begun as a step's own; gone with it. No query, so that the transaction's
--   isolation may still be chosen.
set local zart.trx = 'open'
