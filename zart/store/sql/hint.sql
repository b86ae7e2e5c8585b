-- hint: tells idle workers that work may be ready; run it after the commit of what made the work. See zart_hint_1.
select :schema.zart_hint_1($1, $2, $3)
