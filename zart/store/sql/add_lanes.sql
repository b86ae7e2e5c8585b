-- add_lanes: gives pairs that have no lane a number; see zart_add_lanes_1.
select :schema.zart_add_lanes_1($1, $2)
