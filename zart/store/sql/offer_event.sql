-- offer_event: keeps an event for an execution; see zart_offer_event_1.
select answer, worker from :schema.zart_offer_event_1($1, $2, $3, $4, $5::text::json, $6)
