"""The words by which lists of instructions, and what stands around them, are recognised, in the languages that models
commonly answer in.

Each is an alternation for a regular expression that ignores case.
"""

_QUESTION_LABELS = {
    "en": "questions?|instructions?|requests?|tasks?|prompts?|quer(?:y|ies)|exercises?|items?|q",
    "es": "preguntas?|instrucci(?:ón|ones)|tareas?|solicitud(?:es)?|petici(?:ón|ones)",
    "fr": "consignes?|demandes?|tâches?|requêtes?",
    "de": "fragen?|aufgaben?|anweisung(?:en)?|anfragen?",
    "pt": "perguntas?|instruç(?:ão|ões)|tarefas?|pedidos?",
    "it": "domand[ae]|richiest[ae]|compit[oi]|istruzion[ei]",
    "ru": "вопросы?|задани[ея]|запросы?|инструкци[яи]|задачи?",
    "zh": "问题|問題|指令|请求|請求|任务|任務|题目|題目|问|問",
    "ja": "質問|指示|課題|依頼|リクエスト",
    "ko": "질문|요청|지시|과제",
    "ar": "(?:ال)?سؤال|(?:ال)?طلب|(?:ال)?مهمة|(?:ال)?تعليمات",
    "hi": "प्रश्न|सवाल",
    "vi": "câu hỏi|yêu cầu",
    "tr": "soru|görev|istek",
}

_ANSWER_LABELS = {
    "en": (
        "(?:sample |expected |model |suggested |correct )?(?:answers?|responses?|solutions?)|explanation|rationale|a"
    ),
    "es": "respuestas?|soluci(?:ón|ones)",
    "fr": "réponses?|solutions?",
    "de": "antwort(?:en)?|lösung(?:en)?",
    "pt": "respostas?|soluç(?:ão|ões)",
    "it": "rispost[ae]|soluzion[ei]",
    "ru": "ответы?|решени[ея]",
    "zh": "答案|回答|答",
    "ja": "解答|答え",
    "ko": "답변|정답|답",
    "ar": "(?:ال)?إجابة|(?:ال)?جواب",
    "hi": "उत्तर",
    "vi": "(?:câu )?trả lời|đáp án",
    "tr": "cevap|yanıt",
}

# How a remark to the asker begins, before or after the list.
_CHATTER = {
    "en": (
        "(?:sure|certainly|of course|absolutely|okay|ok|great|no problem)(?= *[,!.:;—–-]| here| i )|here(?: are|"
        "'s| is)|"
        "(?:the following|below) (?:are|is)|these (?:questions|requests|instructions|tasks|prompts)|"
        "(?:i )?hope (?:this|these)|(?:please )?let me know|feel free|if you (?:need|want|would like) (?:more|"
        "me|any|help)|"
        "would you like me|i (?:can|could) also|note:|(?:please )?note that"
    ),
    "es": (
        "claro|por supuesto|aquí (?:están|tienes|hay)|a continuación|estas (?:preguntas|son)|espero que|si necesitas"
    ),
    "fr": (
        "bien sûr|certainement|voici|ci-dessous|ces (?:questions|demandes)|j'espère|n'hésitez pas|"
        "si vous (?:avez|souhaitez)"
    ),
    "de": (
        "natürlich|gerne|selbstverständlich|klar|hier sind|im folgenden|diese fragen|ich hoffe|lass mich wissen|wenn du"
    ),
    "pt": "claro|com certeza|aqui estão|a seguir|estas perguntas|espero que|se precisar",
    "it": "certo|certamente|ecco|di seguito|queste domande|spero che|fammi sapere|se hai bisogno",
    "ru": "конечно|хорошо|вот |ниже|эти вопросы|надеюсь|если (?:вам|нужно)|дайте знать",
    "zh": "当然|當然|好的|以下|这里有|這裡有|下面|希望|如果(?:您|你)?(?:需要|还有)|如需",
    "ja": "もちろん|承知|はい、|以下|これらの|必要であれば|ご不明",
    "ko": "물론|네,|다음은|아래는|필요하시면|도움이 되",
    "ar": "بالتأكيد|بالطبع|حسن[اًا]+|إليك|فيما يلي|آمل|أتمنى|إذا كنت",
}


# What says which of several requests follows.
_ORDINALS = {
    "en": (
        "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|one|two|three|four|five|six|seven|eight|nine|"
        "ten|another|next|last|final|(?:1st|2nd|3rd|[4-9]th)|firstly|secondly|thirdly|fourthly|finally|number|no"
    ),
    "es": "primer[oa]?|segund[oa]|tercer[oa]?|cuart[oa]|quint[oa]|otr[oa]|una?|uno|últim[oa]",
    "fr": "premi(?:er|ère)|deuxième|seconde?|troisième|quatrième|cinquième|une?|autre|derni(?:er|ère)",
    "de": "erste[rs]?|zweite[rs]?|dritte[rs]?|vierte[rs]?|fünfte[rs]?|eine?|weitere[rs]?|andere[rs]?|letzte[rs]?",
    "pt": "primeir[oa]|segund[oa]|terceir[oa]|quart[oa]|quint[oa]|uma?|outr[oa]|últim[oa]",
    "it": "prim[oa]|second[oa]|terz[oa]|quart[oa]|quint[oa]|una?|uno|altr[oa]|ultim[oa]",
    "ru": "перв(?:ый|ая|ое)|втор(?:ой|ая|ое)|трет(?:ий|ья|ье)|четв[её]рт(?:ый|ая|ое)|пят(?:ый|ая|ое)|один|одна|ещ[её]|"
    "друг(?:ой|ая|ое)|последн(?:ий|яя|ее)",
    "zh": "第?[一二三四五六七八九十]+|另一?|最后一?|最後一?|其[一二三四]",
    "ja": "[一二三四五六七八九]つ目|第[一二三四五六七八九]|最初|次|もう一つ|別|最後|番目",
    "ko": "첫|두|세|네|다섯|번째|첫번째|두번째|세번째|네번째|또|다른|마지막|하나",
    "ar": "(?:ال)?(?:أول[ى]?|ثاني[ة]?|ثالث[ة]?|رابع[ة]?|خامس[ة]?|آخر|أخير[ة]?)",
}

# The kinds of requests that our prompt names, and others like them.
_CATEGORIES = {
    "en": (
        "details?|detailed|reasons?|reasoning|connections?|summing|summary|summaries|summari[sz](?:e|ing|ation)|"
        "compar(?:e|ing|ison|isons|ative)|facts?|factual|inferences?|inferential|analysis|analytical|causes?|effects?|"
        "interpretation|comprehension|evaluation|evaluative|contextual|general|specific"
    ),
    "es": "detalles?|razon(?:es)?|razones|conexion(?:es)?|resumen|comparación|análisis",
    "fr": "détails?|raisons?|liens?|résumé|comparaison|analyse",
    "de": "details?|detailfragen?|gründe|zusammenhänge|zusammenfassung|vergleich|analyse",
    "pt": "detalhes?|razões|conexões|resumo|comparação|análise",
    "it": "dettagli[oi]?|ragioni|collegamenti|riassunto|confronto|analisi",
    "ru": "детали|подробности|причины|связи|обобщение|сравнение|анализ",
    "zh": "细节|細節|原因|联系|聯繫|总结|總結|比较|比較|对比|分析|概括",
    "ja": "詳細|理由|関連|つながり|要約|比較|分析",
    "ko": "세부|이유|연결|요약|비교|분석",
    "ar": "(?:ال)?(?:تفاصيل|أسباب|روابط|تلخيص|مقارنة|تحليل)",
}

# The small words between those.
_FRAME_WORDS = {
    "en": (
        "the|a|an|is|are|was|be|could|would|might|may|can|that|about|of|and|or|on|for|to|such|as|my|your|possible|"
        "sample|example|good|great|asks?|asked|reader|readers|careful|make|type|kind|category|mixed|open|ended|based|"
        "short|long|simple|complex|here|follow|up|multiple|choice|user|you|i|it"
    ),
    "es": "el|la|los|las|es|sería|podría|ser|de|sobre|y|posible|ejemplo",
    "fr": "le|la|les|est|serait|pourrait|être|de|des|du|sur|et|possible|exemple",
    "de": "der|die|das|ist|wäre|könnte|sein|lautet|zu|zum|über|und|mögliche|beispiel",
    "pt": "o|a|os|as|é|seria|poderia|ser|de|sobre|e|possível|exemplo",
    "it": "il|la|le|i|è|sarebbe|potrebbe|essere|di|del|della|su|e|possibile|esempio",
    "ru": "это|о|об|из|и|такой|такая|может|быть|вопросов|вопроса|звучит|так|про|на",
    "zh": "[是个個道条條项項的为為可以关于於類类型和与：]",
    "ja": "[はのをがに]|として|です|に関する|質問",
    "ko": "질문은|요청은|과제는|은|는|의|에|대한|관한|수|있는",
    "ar": "هو|هي|عن|حول|و|في|من|قد|يكون|تكون",
}


def _alternation(by_language: dict[str, str]) -> str:
    return "(?:" + "|".join(by_language.values()) + ")"


QUESTION_LABEL = _alternation(_QUESTION_LABELS)
ANSWER_LABEL = _alternation(_ANSWER_LABELS)
CHATTER = _alternation(_CHATTER)
ORDINAL = _alternation(_ORDINALS)
CATEGORY = _alternation(_CATEGORIES)
FRAME = _alternation(_FRAME_WORDS)
