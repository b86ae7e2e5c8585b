-- look: what waiting bodies have to hear: id and wakes, null when the claim is gone; see zart_look_1.
select id, wakes from :schema.zart_look_1($1, $2, $3, $4, $5, $6)
