-- renew_leases: renews the leases of workers; see zart_renew_leases_1.
select zart_renew_leases_1 as id from :schema.zart_renew_leases_1($1, $2, $3)
