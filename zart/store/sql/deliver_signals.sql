-- deliver_signals: brings wake-ups into parents that were locked; see zart_deliver_signals_1.
select seen, delivered from :schema.zart_deliver_signals_1($1)
