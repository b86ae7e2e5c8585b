-- drop_duty: gives a duty back, if $2 holds it ($1 duty, $2 holder). Locks: the duty's row. Index: primary key.
update :schema.zart_duties d set until = '-infinity' where d.duty = $1 and d.holder = $2
