-- look: ids of waiting bodies that have something to hear; see zart_look_1.
select zart_look_1 as id from :schema.zart_look_1($1, $2, $3, $4, $5, $6)
