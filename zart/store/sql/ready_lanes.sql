-- ready_lanes: lanes that have claimable work now; see zart_ready_lanes_1.
select zart_ready_lanes_1 as lane from :schema.zart_ready_lanes_1($1, $2, $3)
